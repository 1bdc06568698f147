"""The architectures that trillion_serve trains, converts and serves, in plain PyTorch."""


def register() -> None:
    """Make every family known to Transformers' ``AutoConfig`` and ``AutoModelForCausalLM``.

    ``from_pretrained`` and ``save_pretrained`` then read and write the published layouts. May be called any number
    of times.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping

    from trillion_model.vaetki import VaetkiConfig, VaetkiForCausalLM
    from trillion_model.vaetki.layout import LAYOUT

    AutoConfig.register(VaetkiConfig.model_type, VaetkiConfig, exist_ok=True)
    AutoModelForCausalLM.register(VaetkiConfig, VaetkiForCausalLM, exist_ok=True)
    register_checkpoint_conversion_mapping(VaetkiConfig.model_type, LAYOUT.transformers_converters(), overwrite=True)
