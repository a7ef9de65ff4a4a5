"""amqtt's plugin API, hosted: amqtt's own plugins, and those written for it, decide and look on here.

amqtt is imported only where plugins are configured.
"""
