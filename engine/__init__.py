"""The engine of GLADIUS: jobs, experts, distillation and delivery; it knows no screen."""

__version__ = "0.1.0"
