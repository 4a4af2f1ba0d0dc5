"""Pages for people: one theme and one SVG layer."""
