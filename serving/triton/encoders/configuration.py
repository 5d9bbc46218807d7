"""The configuration of an encoder's model."""

from serving.bundle import Bundle
from serving.encoders.opening import choose_encoder_engine
from serving.loading import load_tokenizer
from serving.triton.config import DynamicBatching, ModelConfig
from serving.triton.encoders.tensors import encoder_role
from serving.triton.roles import Role
from serving.triton.settings import EncoderSettings


def encoder_model(
    name: str,
    bundle: Bundle,
    settings: EncoderSettings,
    batching: DynamicBatching,
    instances: int,
    versions: int,
) -> tuple[ModelConfig, Role]:
    """A model for a bundle's encoder, and what it does.

    Raises UserError if the bundle holds no encoder that runs here.
    """
    choose_encoder_engine(bundle, settings.target)
    encoder = bundle.manifest.require_encoder()
    role = encoder_role(encoder)
    parameters = dict(settings.parameters)
    if encoder.task == "fill-mask" and encoder.mask_token is not None:
        tokenizer = load_tokenizer(bundle)
        token = tokenizer.id_to_token(encoder.mask_token) if tokenizer else None
        parameters |= {"mask_token": token} if token else {}
    config = ModelConfig(
        name,
        role.inputs,
        role.outputs,
        instances,
        role.instances,
        versions=versions,
        parameters=parameters,
        decoupled=role.decoupled,
        batching=batching,
    )
    return config, role
