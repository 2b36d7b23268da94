"""The fleet's page: devices, a rollout being watched, who taught the fleet what. It only shows (docs/fleet.md)."""
