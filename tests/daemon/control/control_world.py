"""What tests of the control plane send."""

TOKEN = "correct horse"
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}
CHANGES = ["/v1/rounds", "/v1/reload", "/v1/rollback", "/v1/promote", "/v1/checkpoints/1/pin"]
CHANGES += ["/v1/checkpoints/1/unpin", "/v1/refused/retry", "/v1/approve", "/v1/reject"]
CHANGES += [f"/v1/conditions/1/{change}" for change in ("merge", "rename", "forget")]
