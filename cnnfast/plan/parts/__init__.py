"""Networks that no single plan holds: plans joined by layers that stay eager."""
