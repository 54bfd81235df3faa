"""Loading a separator, with errors that say which."""


def load_separator(name: str, dtype):
    """Model and processor of a folder or Hub id, the model in this torch dtype.

    Raises:
        ValueError: there is no separator of this name, or it is damaged.
    """
    from transformers.utils import logging

    from modeling_mss import MssForConditionalGeneration
    from processing_mss import MssProcessor

    # Not by the pipeline, which tells what is wrong with a checkpoint in a page of text; so does the load report.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return MssForConditionalGeneration.from_pretrained(name, dtype=dtype), MssProcessor.from_pretrained(name)
    except (AttributeError, KeyError, TypeError) as error:  # transformers' own, where a configuration is none
        raise ValueError(f"{name} holds no separator ({type(error).__name__}: {error}): get it again.") from error
    except (OSError, ValueError) as error:
        if name in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
