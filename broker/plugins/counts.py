"""The numbers of amqtt's plugin for ``$SYS``, without telling it about every packet.

Its callbacks only add up what the broker has counted already, and would cost more than all the rest of a message.
"""

from typing import Final

from amqtt.plugins.sys import broker as sys_plugin
from amqtt.plugins.sys.broker import BrokerSysPlugin

from ..core.snapshot import Stats
from .bridge import Bridge
from .facade import Facade

EVERY_S: Final = 0.25


def keep_counting(plugin: BrokerSysPlugin, facade: Facade, bridge: Bridge) -> None:
    """Bring the plugin's numbers up to date now and again. Called in the plugins' thread."""
    stats: Stats = facade.engine.stats
    plugin._stats |= {
        sys_plugin.STAT_BYTES_RECEIVED: stats.bytes_received,
        sys_plugin.STAT_BYTES_SENT: stats.bytes_sent,
        sys_plugin.STAT_MSG_RECEIVED: stats.packets_received,
        sys_plugin.STAT_MSG_SENT: stats.packets_sent,
        sys_plugin.STAT_PUBLISH_RECEIVED: stats.messages_received,
        sys_plugin.STAT_PUBLISH_SENT: stats.messages_sent,
    }
    bridge.loop.call_later(EVERY_S, keep_counting, plugin, facade, bridge)
