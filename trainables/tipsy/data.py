"""What TIPSy-GAN is given: poses without depth, and what is drawn anew for each batch. All pose families share it."""

from trainables.common.pose.augmentation import Views, chance, flipped
from trainables.common.pose.data import PoseDataConfig, open_poses

__all__ = ["PoseDataConfig", "Views", "chance", "flipped", "open_poses"]
