"""An MQTT broker to embed or to serve."""
