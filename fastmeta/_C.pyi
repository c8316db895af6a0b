# Importing the compiled module registers torch.ops.fastmeta; it exports nothing else.
