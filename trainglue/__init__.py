"""trainglue: datakit's shards in a trainer.

    trainer = trl.SFTTrainer(model, train_dataset=trainglue.dataset("shards/", method="sft"))

So far it opens shards, checks that their kind fits the method, and gives the trainer its columns and nothing else.
"""

from trainglue.data import KINDS_OF, dataset

__all__ = ["KINDS_OF", "dataset"]
