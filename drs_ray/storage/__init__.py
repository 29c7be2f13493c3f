"""Stores of whole objects by key, in a local directory or below an s3:// prefix."""

from drs_ray.storage.base import Store, StoredObject
from drs_ray.storage.local import LocalStore
from drs_ray.storage.opening import open_place_of, open_store
from drs_ray.storage.s3 import S3Store

__all__ = ["LocalStore", "S3Store", "Store", "StoredObject", "open_place_of", "open_store"]
