"""YAML only; shipped as package data."""
