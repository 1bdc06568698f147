"""The architectures that trillion_serve trains, converts and serves, in plain PyTorch."""

from importlib import import_module

FAMILIES = {
    "vaetki": "Vaetki",
    "trillion": "Trillion7B",
    "tri70b": "Trillion",
    "gravity": "GravityMoE",
}
"""The folder of each family, and what the names of its classes begin with."""


def register_configurations() -> None:
    """Make every family known to Transformers' ``AutoConfig``, without torch. May be called any number of times."""
    from transformers import AutoConfig

    for folder, prefix in FAMILIES.items():
        config = getattr(import_module(f"{__name__}.{folder}"), f"{prefix}Config")
        AutoConfig.register(config.model_type, config, exist_ok=True)


def register() -> None:
    """Make every family known to Transformers' ``AutoConfig`` and ``AutoModelForCausalLM``.

    ``from_pretrained`` and ``save_pretrained`` then read and write the published layouts. May be called any number
    of times.
    """
    from transformers import AutoModelForCausalLM
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping

    register_configurations()
    for folder, prefix in FAMILIES.items():
        family = import_module(f"{__name__}.{folder}")
        layout = import_module(f"{__name__}.{folder}.layout").LAYOUT
        config, model = getattr(family, f"{prefix}Config"), getattr(family, f"{prefix}ForCausalLM")
        AutoModelForCausalLM.register(config, model, exist_ok=True)
        register_checkpoint_conversion_mapping(config.model_type, layout.transformers_converters(), overwrite=True)
