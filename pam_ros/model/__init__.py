"""The network, and what its libraries need to know before they are imported."""

import logging
import os

# oneDNN, torch's and OpenVINO's alike, keeps the kernels of 1024 shapes by default, and a process that gets
# every number of clicks grows. Fewer are as fast. It reads this when it is used first.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")

# transformers imports torchao, if it is installed, which warns of kernels that nothing uses.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
