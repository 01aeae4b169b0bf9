# What each role of infra/access may do, as policies of one store; told there alone.

variable "bucket" {
  type        = string
  description = "name of the bucket"
}

variable "prefix" {
  type        = string
  description = "the store's prefix in it, without slashes at its ends"
  validation {
    condition = (
      var.prefix != "" && trim(var.prefix, "/") == var.prefix && length(regexall("[*?$\"\\\\]", var.prefix)) == 0
    )
    error_message = "name a prefix, without wildcards and without slashes at its ends"
  }
}

locals {
  names = ["reader", "writer", "publisher", "curator", "conditional_create"]
  policies = {
    for name in local.names : name => jsondecode(replace(replace(
      file("${path.module}/../access/${name}.json"), "BUCKET", var.bucket), "PREFIX", var.prefix
    ))
  }
}
