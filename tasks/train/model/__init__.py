"""The student: its layers as ours, the fused head with the losses, adapters, export."""
