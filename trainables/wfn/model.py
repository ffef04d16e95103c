"""The networks, whose weights can be fixed one by one; the families of few distinct weights share both."""

from trainables.common.quantisation.fixing import Layout, make_fixable
from trainables.common.quantisation.models import ModelConfig, build_model

__all__ = ["Layout", "ModelConfig", "build_model", "make_fixable"]
