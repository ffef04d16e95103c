"""What PWFN is trained on: images and their classes. Both families of networks with few distinct weights share it."""

from trainables.common.quantisation.images import BUILT_IN, ImageDataConfig, Images, open_images

__all__ = ["BUILT_IN", "ImageDataConfig", "Images", "open_images"]
