"""MatSpectNet: materials from hyperspectral images that are recovered from RGB, held to what a camera would see."""
