"""Objects: named bytes in a folder, on S3, or behind a web server."""

from klray.store.objects.base import JSON_BYTES, LARGEST_OBJECT, NO_OBJECT, OBJECT_BYTES, Listed, Objects, is_temporary
from klray.store.objects.folder import FolderObjects
from klray.store.objects.opening import open_objects
