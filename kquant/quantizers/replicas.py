"""Extrema over all replicas of a distribution strategy."""

import tensorflow as tf


def extrema_of_all(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns (smallest low, largest high) over the replicas of `tf.distribute`; as they are on one device.

  Args:
    low, high: of this replica, [channels] or [1] each.
  """
  context = tf.distribute.get_replica_context()
  if context is None or context.num_replicas_in_sync == 1:
    return low, high
  mine = tf.range(context.num_replicas_in_sync) == context.replica_id_in_sync_group
  ends = tf.stack([low, high])[None]
  ends = tf.where(mine[:, None, None], ends, tf.zeros_like(ends))  # there is a sum over replicas, no minimum
  ends = context.all_reduce(tf.distribute.ReduceOp.SUM, ends)
  return tf.reduce_min(ends[:, 0], 0), tf.reduce_max(ends[:, 1], 0)


def replica_id() -> tf.Tensor:
  """Returns the place of this replica among all, int64; 0 on one device."""
  context = tf.distribute.get_replica_context()
  return tf.cast(0 if context is None else context.replica_id_in_sync_group, tf.int64)
