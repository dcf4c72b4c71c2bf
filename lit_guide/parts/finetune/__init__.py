"""`finetune`: start from weights of your own, keep the backbone as it is, and train layers at rates of their own."""
