"""The base of every config: frozen, and deaf to nothing — an unknown key is an error, not a shrug."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen pydantic model that refuses unknown keys. Each module subclasses it for what it builds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
