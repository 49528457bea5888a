"""The reason codes of the policy, and what they rest on."""
