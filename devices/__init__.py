"""Simulated devices and consumers, and the ledger that proves what was delivered."""

from .fleet import ConsumerSnapshot, Fleet, Snapshot
from .ledger import FlowResult, Ledger
from .link import Address, FleetError, parse_address
from .report import ConsumerReport, Report
from .scenario import Scenario, load_scenario
from .scenarios import shipped, shipped_names

__all__ = [
    "Address",
    "ConsumerReport",
    "ConsumerSnapshot",
    "Fleet",
    "FleetError",
    "FlowResult",
    "Ledger",
    "Report",
    "Scenario",
    "Snapshot",
    "load_scenario",
    "parse_address",
    "shipped",
    "shipped_names",
]
