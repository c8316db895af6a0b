"""Checks an installed wheel, outside of the repository."""

import torch

import fastmeta

info = fastmeta.build_info()
assert "site-packages" in fastmeta.__file__, fastmeta.__file__
assert info.backend == "compiled", info
g = torch.randn(5, 1037)
torch.testing.assert_close(fastmeta.ops.gram(g)[0], g @ g.T, rtol=1e-4, atol=1e-3)
print("wheel works:", info)
