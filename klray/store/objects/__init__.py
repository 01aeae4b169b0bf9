"""Objects: named bytes in a folder, on S3, or behind a web server.

base        the operations
folder      on a local file system
roles       who may do what in a shared bucket
retry       asking a server again
bucket      on S3: patience, and words for refusals
s3          on S3, through s3fs
s3_obstore  on S3, through obstore
web         over https, for reading
opening     from a URL to one of these
endpoint    whether anybody is at an S3 endpoint
probe       whether a place keeps the promises that the store rests on
"""

from klray.store.objects.base import Listed, Objects, is_temporary
from klray.store.objects.folder import FolderObjects
from klray.store.objects.opening import open_objects

__all__ = ["FolderObjects", "Listed", "Objects", "is_temporary", "open_objects"]
