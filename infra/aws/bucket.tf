# A bucket for one store: encrypted, versioned, never public, with the roles' policies. With terraform or tofu:
#
#     terraform -chdir=infra/aws init
#     terraform -chdir=infra/aws apply -var bucket=my-bucket -var prefix=pythia/2026

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.80"
    }
  }
}

resource "aws_s3_bucket" "store" {
  bucket = var.bucket
}

resource "aws_s3_bucket_public_access_block" "store" {
  bucket                  = aws_s3_bucket.store.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_versioning" "store" {
  bucket = aws_s3_bucket.store.id
  versioning_configuration { status = "Enabled" }
}

resource "aws_s3_bucket_lifecycle_configuration" "store" {
  bucket = aws_s3_bucket_versioning.store.bucket
  rule {
    id     = "versions"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload { days_after_initiation = 7 }
    noncurrent_version_expiration { noncurrent_days = 30 } # what a repair took out can be had back so long
    expiration { expired_object_delete_marker = true }
  }
}

resource "aws_s3_bucket_policy" "store" {
  bucket = aws_s3_bucket.store.id
  policy = jsonencode(local.policies["conditional_create"]) # no program replaces a commit
}

resource "aws_iam_policy" "role" {
  for_each = toset(["reader", "writer", "publisher", "curator"])
  name     = "klray-${each.key}"
  policy   = jsonencode(local.policies[each.key])
}
