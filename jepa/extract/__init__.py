"""Features of a frozen encoder, extracted to shards once and read by every probe."""

from jepa.extract.plan import ExtractConfig
from jepa.extract.run import Extracted, extract

__all__ = ["ExtractConfig", "Extracted", "extract"]
