"""How much state a state-space layer updates at each position, as far as that is known."""

from __future__ import annotations

from diffai_jupyter.checkpoint.model import Checkpoint
from diffai_jupyter.facts.network.behavior import language_config

_GROUP_KEYS = ("n_groups", "mamba_n_groups", "linear_num_key_heads")


def state_of(name: str, checkpoint: Checkpoint) -> int | None:
    """Return the numbers of state behind a tensor of decays; None for other tensors and where they are not known.

    Mamba has one decay for each. Mamba-2 and gated delta rules have one for each head: their states are the channels
    that come out times those that one group of keys has in the short convolution.
    """
    module, _, last = name.rpartition(".")
    if last not in ("A_log", "ssm_a"):
        return None
    tensor = checkpoint.tensors[name]
    if len(tensor.shape) == 2 and min(tensor.shape) > 1:
        return tensor.size
    convolution = checkpoint.tensors.get(f"{module}.conv1d.weight")
    output = checkpoint.tensors.get(f"{module}.out_proj.weight")
    config = language_config(checkpoint.config)
    groups = next((config[key] for key in _GROUP_KEYS if isinstance(config.get(key), int)), None)
    if convolution is None or output is None or not isinstance(groups, int) or groups < 1:
        return None
    channels = output.shape[-1]
    return channels * ((convolution.shape[0] - channels) // 2 // groups)


def leaves_out_state(checkpoint: Checkpoint) -> bool:
    """Say whether there is a recurrence whose size is not known."""
    return any(
        "receptance" in name or (name.endswith(("A_log", "ssm_a")) and state_of(name, checkpoint) is None)
        for name in checkpoint.tensors
    )


def has_states(checkpoint: Checkpoint) -> bool:
    """Say whether a network has state-space layers."""
    return any(name.endswith(("A_log", "ssm_a")) for name in checkpoint.tensors)
