"""The engine of GLADIUS: jobs, experts, distillation and delivery. Imports no user interface."""

__version__ = "0.1.0"
