# Instance profiles for infra/aws/ray_cluster.yaml: klray-worker writes to the store, klray-head starts workers as well.

data "aws_iam_policy_document" "ec2" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "launch" {
  statement {
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.node["worker"].arn]
  }
  statement {
    actions = [
      "ec2:CreateTags", "ec2:DescribeImages", "ec2:DescribeInstances", "ec2:DescribeInstanceTypes",
      "ec2:DescribeKeyPairs", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets", "ec2:RunInstances",
    ]
    resources = ["*"]
  }
  statement {
    actions   = ["ec2:TerminateInstances"]
    resources = ["*"]
    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/ray-cluster-name"
      values   = ["klray"]
    }
  }
}

resource "aws_iam_role" "node" {
  for_each           = toset(["head", "worker"])
  name               = "klray-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.ec2.json
}

resource "aws_iam_role_policy_attachment" "writer" {
  for_each   = aws_iam_role.node
  role       = each.value.name
  policy_arn = aws_iam_policy.role["writer"].arn
}

resource "aws_iam_role_policy" "launch" {
  role   = aws_iam_role.node["head"].id
  policy = data.aws_iam_policy_document.launch.json
}

resource "aws_iam_instance_profile" "node" {
  for_each = aws_iam_role.node
  name     = "klray-${each.key}"
  role     = each.value.name
}
