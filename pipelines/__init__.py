"""The stages: each reads files, calls `raters`, writes files, and never imports another."""
