"""The network. transformers imports torchao, if it is installed, which warns of kernels that nothing uses."""

import logging

for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
