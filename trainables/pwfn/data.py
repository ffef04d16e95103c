"""What PWFN is trained on: images and their classes. Both families of networks with few distinct weights share it."""

from trainables.common.quantisation.images import ImageDataConfig, Images, open_images

__all__ = ["ImageDataConfig", "Images", "open_images"]
