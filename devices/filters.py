"""Topic filters as the fleet needs them: does one match, and could two match the same topic (5.0 section 4.7).

The broker has its own, fast matcher for many filters at once. This one is deliberately another piece of code: a checker
that shares the matcher of what it checks would share its mistakes.
"""


def matches(topic_filter: str, topic: str) -> bool:
    """Whether ``topic`` is one of those that ``topic_filter`` (without ``$share/…/``) names."""
    if topic[:1] == "$" and topic_filter[:1] in ("+", "#"):
        return False  # 5.0 [MQTT-4.7.2-1]
    levels = topic.split("/")
    wanted = topic_filter.split("/")
    for index, want in enumerate(wanted):
        if want == "#":
            return True
        if index == len(levels) or want not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)


def overlap(one: str, other: str) -> bool:
    """Whether some topic matches both filters."""
    left, right = one.split("/"), other.split("/")
    for index in range(max(len(left), len(right))):
        a = left[index] if index < len(left) else None
        b = right[index] if index < len(right) else None
        if a == "#" or b == "#":
            return True  # "a/#" also matches "a": what is missing on the other side does not matter
        if a is None or b is None or (a != b and "+" not in (a, b)):
            return False
    return True


def filter_error(topic_filter: str) -> str | None:
    """What is wrong with a filter, in words; None if it is one (`5.0 [MQTT-4.7.1-1]` and following)."""
    if not topic_filter:
        return "a topic filter, which is not empty"
    if "\x00" in topic_filter or len(topic_filter.encode()) > 65535:
        return "a topic filter of at most 65535 bytes without the null character"
    levels = topic_filter.split("/")
    for index, level in enumerate(levels):
        if "#" in level and (level != "#" or index != len(levels) - 1):
            return "'#' alone in the last level of a topic filter"
        if "+" in level and level != "+":
            return "'+' alone in its level of a topic filter"
    return None


def topic_error(topic: str) -> str | None:
    """What is wrong with a topic name to publish to, in words; None if it is one."""
    if not topic or "\x00" in topic or len(topic.encode()) > 65535:
        return "a topic of 1 to 65535 bytes without the null character"
    if "+" in topic or "#" in topic:
        return "a topic without the wildcards + and #"
    return None
