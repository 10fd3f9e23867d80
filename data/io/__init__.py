"""Reading and writing files: rows, images, shards of long work, splits."""
