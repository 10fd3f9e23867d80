"""Names of the images that a frozen vision-language model is shown."""

from abc import ABC, abstractmethod

from data.io.digests import image_bytes_digest
from data.io.images import ImageSource


class ImageKeys(ABC):
    """Gives images keys made of their contents; the file of a path is read once."""

    def __init__(self) -> None:
        self._of_paths: dict[str, str] = {}
        self._met: set[str] = set()

    def key(self, source: ImageSource) -> str:
        """The name of a picture; pictures with the same content share it.

        Raises:
            ImageError: an image that cannot be read.
        """
        if isinstance(source, str) and source in self._of_paths:
            return self._of_paths[source]
        key = image_bytes_digest(source)
        if key not in self._met:
            self._meet(key, source)
            self._met.add(key)
        if isinstance(source, str):
            self._of_paths[source] = key
        return key

    @abstractmethod
    def _meet(self, key: str, source: ImageSource) -> None:
        """Learns what is needed of a picture that was not seen before."""
