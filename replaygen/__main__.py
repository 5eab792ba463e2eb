from replaygen.cli import main

main()
