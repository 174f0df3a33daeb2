"""Adapters to other frameworks; they hold no logic of their own."""
