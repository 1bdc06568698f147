"""Training for trillion_serve: data, tokenizer, pre-training, supervised fine-tuning and evaluation."""
