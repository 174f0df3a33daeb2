"""Photos: from what a caller holds to checked 8-bit sRGB pixels. Importing this package loads neither Pillow nor NumPy.

::

    inputs      what an image may be: paths, addresses, bytes, open files, PIL images
    arrays      NumPy arrays and tensors
    files       bytes of a local file
    decoding    encoded bytes to a Photo
    formats     the formats that are read, and their suffixes
    png, depth  PNGs with long texts; 16 bits a channel
    modes       any Pillow mode to RGB
    levels      values of any range to 8 bits
    colour      colour profiles to sRGB
    limits      the largest number of pixels, and Pillow's global settings
    reasons     why a file is refused
"""

from ldot_milvus.images.decoding import Photo, content_id, decode, from_pil
from ldot_milvus.images.formats import RAW_SUFFIXES, SUFFIXES, can_read, check_suffix
from ldot_milvus.images.inputs import ImageSource, as_image, each_image, is_one_image, open_image
from ldot_milvus.images.limits import MAX_PIXELS, max_pixels

__all__ = [
    "MAX_PIXELS", "RAW_SUFFIXES", "SUFFIXES", "ImageSource", "Photo", "as_image", "can_read", "check_suffix",
    "content_id", "decode", "each_image", "from_pil", "is_one_image", "max_pixels", "open_image",
]  # fmt: skip
