"""Who in this process has subscribed to what.

Rule: whoever has ended a subscription hears nothing more, from within a delivery too; and what a subscriber raises
stops neither the publisher nor another subscriber.
"""

import logging
from collections.abc import Callable, KeysView

__all__ = ["Topics"]

log = logging.getLogger("tollhouse.store")


class _Subscription:
    __slots__ = ("_topic", "_topics", "deliver", "is_over", "may_lack", "on_gap")

    def __init__(
        self, topics: "Topics", topic: str, deliver: Callable[[bytes], None], on_gap: Callable[[], None] | None
    ) -> None:
        self._topics = topics
        self._topic = topic
        self.deliver = deliver
        self.on_gap = on_gap
        self.is_over = False
        self.may_lack = False

    def end(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._topics._remove(self._topic, self)


class Topics:
    """emptied: told when a topic has lost its last subscription."""

    __slots__ = ("_emptied", "_subscriptions")

    def __init__(self, emptied: Callable[[str], None] | None = None) -> None:
        self._emptied = emptied
        self._subscriptions: dict[str, list[_Subscription]] = {}

    @property
    def names(self) -> KeysView[str]:
        """Topics that somebody has subscribed to."""
        return self._subscriptions.keys()

    def add(
        self, topic: str, deliver: Callable[[bytes], None], on_gap: Callable[[], None] | None
    ) -> Callable[[], None]:
        """A subscription: what ends it. Each is one of its own, whatever the functions."""
        subscription = _Subscription(self, topic, deliver, on_gap)
        self._subscriptions.setdefault(topic, []).append(subscription)
        return subscription.end

    def deliver(self, topic: str, message: bytes) -> None:
        for subscription in tuple(self._subscriptions.get(topic, ())):
            if not subscription.is_over:
                try:
                    subscription.deliver(message)
                except Exception:  # as a task's root: the publisher and other subscribers have their own work
                    log.exception("a message on %r could not be taken", topic)

    def lost(self) -> None:
        """From now on messages may be lost, to all who have subscribed."""
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.may_lack = True

    def regained(self) -> None:
        """They are delivered again: tell those who may have lost some."""
        for topic, subscriptions in list(self._subscriptions.items()):
            for subscription in tuple(subscriptions):
                if subscription.may_lack and not subscription.is_over:
                    subscription.may_lack = False
                    if subscription.on_gap is not None:
                        try:
                            subscription.on_gap()
                        except Exception:  # as a task's root, as above
                            log.exception("a gap on %r could not be made up for", topic)

    def _remove(self, topic: str, subscription: _Subscription) -> None:
        subscriptions = self._subscriptions[topic]
        subscriptions.remove(subscription)
        if not subscriptions:
            del self._subscriptions[topic]
            if self._emptied is not None:
                self._emptied(topic)
