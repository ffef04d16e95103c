"""What the networks are trained on; the families of few distinct weights share it."""

from trainables.common.quantisation.images import ImageDataConfig, Images, open_images

__all__ = ["ImageDataConfig", "Images", "open_images"]
