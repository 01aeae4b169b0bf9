# What infra/aws/ray_cluster.yaml starts machines with: an AMI with NVIDIA's driver and Docker, and a group whose members
# reach each other, and which SSH reaches from one address. Ray's own group would let everybody in by SSH.

variable "cidr" {
  type        = string
  default     = null
  description = "from where the cluster is reached by SSH, such as 203.0.113.7/32; null: from nowhere"
}

data "aws_ami" "gpu" {
  most_recent = true
  owners      = ["amazon"]
  filter {
    name   = "name"
    values = ["Deep Learning Base AMI with Single CUDA (Ubuntu 22.04) *"]
  }
}

resource "aws_security_group" "cluster" {
  name        = "klray"
  description = "A Ray cluster that scores"
  ingress {
    description = "each other"
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    self        = true
  }
  dynamic "ingress" {
    for_each = var.cidr == null ? [] : [var.cidr]
    content {
      description = "SSH"
      from_port   = 22
      to_port     = 22
      protocol    = "tcp"
      cidr_blocks = [ingress.value]
    }
  }
  egress {
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    cidr_blocks = ["0.0.0.0/0"]
  }
}

output "ami" {
  value = data.aws_ami.gpu.id
}

output "group" {
  value = aws_security_group.cluster.id
}
