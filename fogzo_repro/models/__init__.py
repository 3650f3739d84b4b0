"""The networks, before quantization.

A network is a file with `build`, which draws from torch's global generator and returns a module in
float32 on the CPU. The run gives it `image_shape` (C, H, W) and `classes`, if it is for images.
"""
