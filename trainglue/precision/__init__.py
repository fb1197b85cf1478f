"""The number formats of a run: what is asked for, what it needs, and what it turns a model into.

| precision     | weights        | matrix products | trains |
|---------------|----------------|-----------------|--------|
| `fp32`        | as loaded      | fp32            | all or LoRA |
| `bf16`, `fp16`| as loaded      | 16 bits, by autocast | all or LoRA |
| `qlora`       | nf4, frozen    | bf16            | LoRA |
| `fp8`         | as loaded      | 8 bits in the linear layers of the decoder, bf16 elsewhere | all or LoRA |
| `fp8_weights` | fp8, frozen    | 8 bits, forward only | LoRA, with Unsloth only |

`fp8` is a property of layers here, not of an environment variable: `prepare` swaps layers before PEFT and the trainer
see the model, and the audit stops a run whose first step did not compute in it.

    formats      what can be asked for, and what became of a model
    float8       the layers
    preparing    a model in its precision
    audit        the callback that stops a run
"""

from trainglue.precision.formats import PRECISIONS as PRECISIONS
from trainglue.precision.formats import Conversion as Conversion
from trainglue.precision.formats import Fp8 as Fp8
from trainglue.precision.formats import PrecisionNotUsed as PrecisionNotUsed
from trainglue.precision.preparing import arguments as arguments
from trainglue.precision.preparing import check_fp8_training_support as check_fp8_training_support
from trainglue.precision.preparing import prepare as prepare
from trainglue.precision.preparing import settle as settle
from trainglue.precision.preparing import setup_fp8_mixed_precision_training as setup_fp8_mixed_precision_training
from trainglue.precision.preparing import unsloth as unsloth
