from trillion_training.cli import main

main()
