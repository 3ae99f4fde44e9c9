"""Fetching: one seam for HTTP, and wrappers for resume, mirrors, proxies, caps and counting."""
