"""The paper's experiments, each run by one call: `reproduce("figure-2", ["demo"], offline=True)`."""

from sp_lens.reproduction.page import write_page
from sp_lens.reproduction.result import Finding, Reproduction
from sp_lens.reproduction.run import reproduce

__all__ = ["Finding", "Reproduction", "reproduce", "write_page"]
