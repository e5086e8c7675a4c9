"""Autoencoders of grey X-rays: their channels."""
